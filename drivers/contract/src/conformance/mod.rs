//! One set of tests for each trait, run by every implementation of it.
