//! Prints a table with one line per customer.

use std::{fs, time::Duration};

use tests::fixtures::Namespace;

use crate::{
    Outcome,
    customers::Customer,
    job::{Done, Failed, Job},
};

/// The result of a customer's job.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    customer: &'a Customer,
    namespace: String,
    ready: Option<Duration>,
    done: Option<Done>,
    outcome: String,
    /// Advice to the customer.
    advice: Option<String>,
}

impl<'a> Row<'a> {
    pub(crate) fn of(customer: &'a Customer, namespace: &Namespace) -> Outcome<Self> {
        // The link is such as `net:[4026532001]`.
        let link = fs::read_link(namespace.path())?.to_string_lossy().into_owned();
        let namespace = link.trim_start_matches("net:[").trim_end_matches(']').to_owned();
        Ok(Self {
            customer,
            namespace,
            ready: None,
            done: None,
            outcome: String::new(),
            advice: None,
        })
    }

    pub(crate) fn opened(&mut self, job: &Job<'_>) {
        self.ready = Some(job.ready);
    }

    pub(crate) fn transferred(&mut self, done: Done) {
        "all rows, status 0".clone_into(&mut self.outcome);
        self.done = Some(done);
    }

    pub(crate) fn failed(&mut self, failed: &Failed) {
        let Failed { code, status, message, hint } = failed;
        self.outcome = format!("failed: {code}, status {}", status.code());
        self.advice = Some(format!("{message}\n    → {hint}"));
    }

    pub(crate) fn dropped(&mut self) {
        "dropped by its runner amid the rows".clone_into(&mut self.outcome);
    }

    fn print(&self) {
        let Self { customer, namespace, ready, done, outcome, .. } = self;
        let ready = shown(ready.as_ref(), |ready| format!("{} ms", ready.as_millis()));
        let rows = shown(done.as_ref(), |done| done.rows.to_string());
        let memory = shown(done.as_ref(), |done| megabytes(done.resident_bytes));
        let Customer { number, name, port, .. } = customer;
        println!(
            "  {number:>2}  {name:<16}  {namespace}  {port}  {ready:>8}  {rows:>6}  {memory:>7}  {outcome}"
        );
    }
}

/// Prints the table and its sums.
pub(crate) fn print(rows: &[Row<'_>]) {
    println!("   #  customer          namespace    port     ready    rows   RSS MB  outcome");
    for row in rows {
        row.print();
    }
    let done = || rows.iter().filter_map(|row| row.done.as_ref());
    let memory: u64 = done().map(|done| done.resident_bytes).sum();
    let slowest = rows.iter().filter_map(|row| row.ready).max().unwrap_or_default();
    let slowest = format!("≤ {} ms", slowest.as_millis());
    let transferred: usize = done().map(|done| done.rows).sum();
    let all = format!("{} of {} transferred", done().count(), rows.len());
    println!(
        "      {:<16}  {:>10}         {slowest:>9}  {transferred:>6}  {:>7}  {all}",
        "together",
        "",
        megabytes(memory)
    );
    for row in rows {
        if let Some(advice) = &row.advice {
            println!("\n  {}: {advice}", row.customer.name);
        }
    }
}

fn shown<T>(value: Option<&T>, show: impl FnOnce(&T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}
