"""From a student directory to files that other engines run, and the proof that they compute what was trained."""
