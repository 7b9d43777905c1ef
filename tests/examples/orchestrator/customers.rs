//! The customers: AWS users, bastions and databases of their own, all in this process.

use std::fmt::Write as _;

use rand::RngExt as _;
use serde_json::json;
use tests::{
    emulator::{Emulator, Policy},
    fixtures::{Bastion, Config, Database, Order},
};

use crate::Outcome;

/// One customer and everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Customer {
    /// Counted from 1.
    pub(crate) number: usize,
    pub(crate) name: &'static str,
    /// Port of the tunnel, in the network namespace of the customer's transfer.
    pub(crate) port: u16,
    /// Rows of the database.
    pub(crate) orders: Vec<Order>,
    instance: String,
    key_id: String,
    secret: String,
    bastion: Bastion,
    database: Database,
}

/// All customers, and the AWS that they share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) customers: Vec<Customer>,
    pub(crate) emulator: Emulator,
}

impl World {
    pub(crate) async fn start() -> Outcome<Self> {
        let mut customers = Vec::new();
        let mut emulator = Emulator::builder();
        for (name, number) in NAMES.into_iter().zip(1..) {
            let customer = Customer::start(number, name).await?;
            let Customer { instance, key_id, secret, .. } = &customer;
            let policy = Policy::least_privilege(instance);
            emulator = emulator.instance(instance).user(
                &format!("customer-{number}"),
                key_id,
                secret,
                policy,
            );
            customers.push(customer);
        }
        Ok(Self { customers, emulator: emulator.build().await? })
    }

    /// The config for a customer's job, with the listening socket in this network namespace.
    pub(crate) fn config(&self, customer: &Customer, netns: &std::path::Path) -> Config {
        Config::new(customer.name).with(&json!({
            "job_id": format!("transfer-{}", customer.number),
            "aws": {
                "access_key_id": customer.key_id,
                "secret_access_key": customer.secret,
                "endpoint_url": self.emulator.api_url(),
            },
            "bastion": {
                "instance_id": customer.instance,
                "ssh_port": customer.bastion.port(),
                "ssh_user": Bastion::USER,
                "ssh_private_key": customer.bastion.client_key(),
                "ssh_host_key": customer.bastion.fingerprint(),
            },
            "target": {
                "engine": "postgresql",
                "host": DATABASE_HOST,
                "port": customer.database.port(),
            },
            "listen": { "netns": netns, "port": customer.port },
        }))
    }

    /// Every listening port outside the namespaces: AWS, bastions, databases.
    pub(crate) fn ports_outside(&self) -> Outcome<Vec<u16>> {
        let mut ports = Vec::new();
        for url in [self.emulator.api_url(), &self.emulator.stream_url()] {
            let (_, port) = url.rsplit_once(':').ok_or("an address without a port")?;
            ports.push(port.parse()?);
        }
        for customer in &self.customers {
            ports.extend([customer.bastion.port(), customer.database.port()]);
        }
        Ok(ports)
    }
}

impl Customer {
    async fn start(number: u16, name: &'static str) -> Outcome<Self> {
        let orders = orders(number, name);
        let database = Database::holding(&orders).await?;
        let bastion = Bastion::start(DATABASE_HOST, database.port()).await?;
        let mut secret = String::new();
        for byte in rand::rng().random::<[u8; 20]>() {
            write!(secret, "{byte:02x}")?;
        }
        Ok(Self {
            number: number.into(),
            name,
            port: FIRST_PORT + number,
            orders,
            instance: format!("i-{:017x}", 0x0c05_7030_0000_u64 + u64::from(number)),
            key_id: format!("AKIAORCHESTRATOR{number:04}"),
            secret,
            bastion,
            database,
        })
    }

    /// Changes to a config that give the customer another customer's SSH key.
    pub(crate) fn with_key_of(other: &Self) -> serde_json::Value {
        json!({ "bastion": { "ssh_private_key": other.bastion.client_key() } })
    }

    /// Changes to a config that give the customer another customer's bastion.
    pub(crate) fn with_bastion_of(other: &Self) -> serde_json::Value {
        json!({ "bastion": {
            "instance_id": other.instance,
            "ssh_port": other.bastion.port(),
            "ssh_private_key": other.bastion.client_key(),
            "ssh_host_key": other.bastion.fingerprint(),
        } })
    }
}

/// A thousand rows for the first customer, two thousand for the second, and so on; each with its customer's
/// name.
fn orders(number: u16, customer: &'static str) -> Vec<Order> {
    let order = |(item, id): (&'static str, i32)| {
        let amount_yen = i64::from(number) * 1_000_000 + i64::from(id) * 7 % 9_973;
        Order { id, customer, item, amount_yen }
    };
    let items = ["fountain pen", "ink, 50 ml", "notebook, dotted", "desk lamp"];
    items.into_iter().cycle().zip(1..=i32::from(number) * 1_000).map(order).collect()
}

/// The databases' address as seen from the bastions.
const DATABASE_HOST: &str = "127.0.0.1";

/// First port of the tunnels: below the ephemeral ports, so that no server here uses one of them by chance.
const FIRST_PORT: u16 = 15_000;

const NAMES: [&str; 20] = [
    "Aoba Stationery",
    "Benten Foods",
    "Chidori Books",
    "Daikoku Tools",
    "Ebisu Fishery",
    "Fujimi Optics",
    "Ginza Tailors",
    "Hakata Noodles",
    "Ise Ceramics",
    "Jinbo Prints",
    "Kamakura Tea",
    "Lantern Travel",
    "Mikawa Motors",
    "Nara Lacquer",
    "Otaru Glass",
    "Ritsurin Gardens",
    "Sapporo Dairy",
    "Tosa Paper",
    "Uji Ceramics",
    "Yokote Apples",
];
