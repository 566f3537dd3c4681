"""The control plane: HTTP and event streams for people, links for VMs, and what starts them."""
