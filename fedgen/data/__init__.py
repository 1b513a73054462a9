"""What the examples are and who owns them. An option loads examples with their owners and the splits to measure on."""
