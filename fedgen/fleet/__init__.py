"""What devices there are. An option says of every client what it has to work with in a round."""
