"""What plays the outside world in the demo: a shop's database, its refrigerated units, a small business application."""
