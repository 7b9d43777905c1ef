//! The contract between a job runner and its ssm-sidecar, as types.
