"""Write each row to every place that it goes to."""
