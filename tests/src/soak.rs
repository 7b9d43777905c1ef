//! Real load under every fault, for any duration.

mod customer;
mod faults;
mod load;
mod report;

use std::{error::Error, time::Duration};

use tokio::time::Instant;

pub use report::Report;

use self::customer::{Customer, Engine};

/// Runs for `duration` with the faults of `seed`.
///
/// # Errors
///
/// When a server cannot be started or a sidecar does not become ready; later problems are in the report.
pub async fn run(duration: Duration, seed: u64) -> Result<Report, Box<dyn Error + Send + Sync>> {
    let resumable = Customer::start(Engine::PostgreSql, true).await?;
    let perishable = Customer::start(Engine::MariaDb, false).await?;
    let end = Instant::now() + duration;
    let (first, second) =
        tokio::join!(resumable.soak(end, seed), perishable.soak(end, seed.wrapping_add(1)));
    Ok(Report { seed, minutes: duration.as_secs_f64() / 60.0, customers: vec![first?, second?] })
}
