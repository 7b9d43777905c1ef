//! Lines that a runner gets when it asks for them by `events`.
