"""What things cost, measured beside what others need for them, in one run and in turns."""
