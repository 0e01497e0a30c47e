"""One self-contained page, and plots for papers, on what plans do to a trace."""
