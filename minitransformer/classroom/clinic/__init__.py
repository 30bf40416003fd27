"""Models with one fault each, and the instruments that show its symptoms.

Reading order: `patients`, `instruments`, `charts`."""
