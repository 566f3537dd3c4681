"""What is said: events, messages, receipts, and the strict codec. No Trio, no I/O."""
