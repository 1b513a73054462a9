"""Which of its examples a client trains on."""
