"""Running a sweep: what is left to do, processes that do it, and how far they are."""
