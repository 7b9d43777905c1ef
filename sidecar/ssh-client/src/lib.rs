//! An SSH client for port forwarding as a state machine without IO.
