//! End-to-end tests: labs, both engines, faults.
