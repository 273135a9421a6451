"""Moving bytes: what a fill is made of (`pieces`), reading it (`source`, `gather`), and comparing it (`compare`)."""
