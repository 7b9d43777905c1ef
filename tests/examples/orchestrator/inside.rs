//! What runs in a transfer's network namespace: this program, started again with arguments as a separate
//! process.

use std::{
    fs,
    io::{self, Write as _},
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use tokio::{net::TcpStream, select, time::timeout};
use tokio_postgres::{NoTls, types::ToSql};

use crate::Outcome;

/// Words that begin this program's output lines in the namespace.
pub(crate) const FIRST_ROW: &str = "first-row";
pub(crate) const TRANSFERRED: &str = "transferred";
pub(crate) const REACHED: &str = "reached";
pub(crate) const INTERFACES: &str = "interfaces";

/// Reads the whole table through the tunnel: `transferred <rows> <sum of the amounts> <customers in it>`.
pub(crate) async fn transfer(port: u16) -> Outcome<()> {
    let config = format!("host=127.0.0.1 port={port} user=transfer dbname=orders");
    let (client, connection) = timeout(LIMIT, tokio_postgres::connect(&config, NoTls)).await??;
    select! {
        outcome = read(&client) => outcome,
        end = connection => {
            end?;
            Err("the database closed the connection".into())
        }
    }
}

async fn read(client: &tokio_postgres::Client) -> Outcome<()> {
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = client.query_raw("SELECT customer, amount_yen FROM orders", none).await?;
    pin_mut!(rows);
    let (mut count, mut sum, mut customers) = (0_usize, 0_i64, Vec::<String>::new());
    while let Some(row) = rows.next().await {
        let row = row?;
        if count == 0 {
            say(FIRST_ROW)?;
        }
        count += 1;
        sum += row.try_get::<_, i64>(1)?;
        let customer = row.try_get(0)?;
        if !customers.contains(&customer) {
            customers.push(customer);
        }
    }
    say(&format!("{TRANSFERRED} {count} {sum} {}", customers.join(", ")))
}

/// Tries to connect to each of these ports of 127.0.0.1, and prints `reached <ports that accepted>`; looks for
/// a way out, and prints `interfaces <their names>`.
pub(crate) async fn reach(ports: Vec<u16>) -> Outcome<()> {
    let mut reached = Vec::new();
    for port in ports {
        match timeout(LIMIT, TcpStream::connect(("127.0.0.1", port))).await? {
            Ok(_) => reached.push(port.to_string()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
    }
    say(&format!("{REACHED} {}", reached.join(" ")))?;
    let table = fs::read_to_string("/proc/self/net/dev")?;
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next());
    let names: Vec<_> = names.map(str::trim).collect();
    say(&format!("{INTERFACES} {}", names.join(" ")))
}

fn say(line: &str) -> Outcome<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

const LIMIT: Duration = Duration::from_secs(30);
