"""What the packages say to each other: protocols and frozen values."""
