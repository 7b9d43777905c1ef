//! Reaches a database in a private subnet through an AWS Systems Manager session.
