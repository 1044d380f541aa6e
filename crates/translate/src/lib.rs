//! World and a proxy's class to xDS resources. Pure.
