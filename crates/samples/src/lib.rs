//! Our own versions of the course's demo applications.
