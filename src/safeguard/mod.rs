//! safeguard
