"""Who may do what: tokens, tickets, the envelope of provider keys, and who asks. No Trio."""
