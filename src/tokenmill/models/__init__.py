"""The folder that turns a model into something methods can look at, and their decisions into freed memory."""
