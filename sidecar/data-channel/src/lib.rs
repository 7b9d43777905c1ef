//! The SSM Session Manager data channel as a state machine without IO.
