"""What a trial may vary -> trials on Ray Tune -> the points worth a choice."""
