//! The results of a soak.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

/// Results of all customers.
#[derive(Clone, Debug)]
pub struct Report {
    /// Seed of the faults.
    pub seed: u64,
    /// Duration as requested.
    pub minutes: f64,
    pub(crate) customers: Vec<Findings>,
}

/// Results of one customer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) name: &'static str,
    /// Bytes that were read or written and compared.
    pub(crate) compared: u64,
    /// Transfers whose bytes differed from the expected ones.
    pub(crate) differing: Vec<String>,
    pub(crate) transfers: u64,
    pub(crate) transactions: u64,
    /// Clients cut off by a lost session, which started again.
    pub(crate) cut: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) sessions: usize,
    pub(crate) left: Vec<String>,
    pub(crate) violations: Vec<String>,
    /// The sidecar's own counters.
    pub(crate) connections: u64,
    pub(crate) resumes: u64,
    pub(crate) retransmissions: u64,
    /// Pauses by the gateway's flow control, and closes that the sidecar provoked by going on.
    pub(crate) pauses: u64,
    pub(crate) closes_provoked: u64,
    pub(crate) peak_kib: u64,
    /// How the sidecar ended, if not as it should.
    pub(crate) died: Option<String>,
}

impl Findings {
    fn is_good(&self) -> bool {
        self.differing.is_empty()
            && self.left.is_empty()
            && self.violations.is_empty()
            && self.died.is_none()
            && self.compared > 0
            && self.peak_kib < MEMORY_KIB
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "bytes_compared": self.compared,
            "differing": self.differing,
            "transfers": self.transfers,
            "transactions": self.transactions,
            "connections": self.connections,
            "cut": self.cut,
            "faults": self.faults,
            "sessions_started": self.sessions,
            "sessions_left": self.left,
            "violations": self.violations,
            "resumes": self.resumes,
            "retransmissions": self.retransmissions,
            "pauses": self.pauses,
            "closes_provoked": self.closes_provoked,
            "peak_kib": self.peak_kib,
            "died": self.died,
        })
    }
}

impl Report {
    /// Whether all promises were kept.
    pub fn is_good(&self) -> bool {
        self.customers.iter().all(Findings::is_good)
    }

    /// The report as a JSON value.
    pub fn to_json(&self) -> Value {
        let customers: Vec<_> = self.customers.iter().map(Findings::to_json).collect();
        json!({ "seed": self.seed, "minutes": self.minutes, "customers": customers })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.customers.iter().map(|customer| customer.name);
        write!(out, "| after {:.0} minutes, seed {} |", self.minutes, self.seed)?;
        names.clone().try_for_each(|name| write!(out, " {name} |"))?;
        write!(out, "\n| --- |{}", " ---: |".repeat(self.customers.len()))?;
        let mut row = |what: &str, value: &dyn Fn(&Findings) -> String| {
            write!(out, "\n| {what} |")?;
            self.customers.iter().try_for_each(|customer| write!(out, " {} |", value(customer)))
        };
        row("megabytes compared", &|found| (found.compared / 1_000_000).to_string())?;
        row("transfers whose bytes differed", &|found| found.differing.len().to_string())?;
        row("transfers", &|found| found.transfers.to_string())?;
        row("pgbench transactions", &|found| found.transactions.to_string())?;
        row("connections", &|found| found.connections.to_string())?;
        row("clients cut by a lost session, which started again", &|found| found.cut.to_string())?;
        row("faults injected", &|found| found.faults.values().sum::<u64>().to_string())?;
        row("sessions started", &|found| found.sessions.to_string())?;
        row("sessions left", &|found| found.left.len().to_string())?;
        row("resumes", &|found| found.resumes.to_string())?;
        row("messages sent again", &|found| found.retransmissions.to_string())?;
        row("pauses by the service", &|found| found.pauses.to_string())?;
        row("closes provoked by going on", &|found| found.closes_provoked.to_string())?;
        row("violations of the protocol", &|found| found.violations.len().to_string())?;
        row("peak memory of the sidecar, MB", &|found| {
            format!("{:.1}", kib_to_mb(found.peak_kib))
        })?;
        for found in &self.customers {
            let faults: Vec<_> =
                found.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
            write!(out, "\n\n{}: {}", found.name, faults.join(", "))?;
            let bad = [&found.differing, &found.left, &found.violations];
            for line in bad.into_iter().flatten().chain(&found.died) {
                write!(out, "\n  {line}")?;
            }
        }
        write!(out, "\n\n{}", if self.is_good() { "all good" } else { "NOT GOOD" })
    }
}

fn kib_to_mb(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) * 1024.0 / 1e6
}

/// Memory bound of a sidecar with two lanes under this load.
const MEMORY_KIB: u64 = 64 << 10;
