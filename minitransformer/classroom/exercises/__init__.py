"""The exercises, one file for each notebook: the right answer, its known mistakes, the inputs."""
