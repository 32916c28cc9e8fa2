"""Draft heads of the default model that `tokenmill train` made, each with its log."""
