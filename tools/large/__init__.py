"""Models of gigabytes: made, and run through the tool with the memory that it takes."""
