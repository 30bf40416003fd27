"""From a folder of notebooks to a table of grades.

Reading order: `notebooks`, `submission`, `grade`, `report`."""
