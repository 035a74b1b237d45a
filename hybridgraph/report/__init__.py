"""Tables, plots and text from the CSVs of finished runs. Needs pandas and matplotlib, never torch."""
