"""A small mixture-of-experts model, trained here, and the commands run on it one by one."""
