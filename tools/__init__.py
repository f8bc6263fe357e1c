"""Programs that are run by hand, such as the training of the shipped small model."""
