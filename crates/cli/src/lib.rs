//! The lateen command.
