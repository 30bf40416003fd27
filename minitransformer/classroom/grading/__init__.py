"""From a folder of notebooks to a table of grades.

Reading order: `notebooks`, `handed`, `grade`, `checking`, `remote`, `submission`, `protection`, `table`, `report`."""
