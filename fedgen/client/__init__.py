"""What a client does with its part of the model. The loop is visible; the objective and the optimiser vary."""
