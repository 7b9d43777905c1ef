//! The emulator as a program, for trials by hand: `cargo run --bin emulator -- --help`.
//!
//! Prints its endpoints and a config for the sidecar's stdin to stdout, and its journal to stderr, one
//! record a line, until it is interrupted. Its agent dials sshd on this machine, or with `--embedded` its
//! own bastion with a database behind it; in that case the config is complete.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for people")]

use std::{
    error::Error, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use serde_json::json;
use tests::{
    emulator::{
        AgentSettings, Emulator, FlowClose, FlowControl, OpeningMode, Pacing, Plan, Policy,
    },
    fixtures::{Bastion, Database},
};

/// Emulates the SSM API, the message gateway and an instance whose agent leads to this machine's sshd.
#[derive(Debug, Parser)]
struct Options {
    /// Port of the API on 127.0.0.1; 0 for any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The instance whose agent is connected.
    #[arg(long, default_value = "i-0123456789abcdef0")]
    instance: String,
    /// Region of all signatures.
    #[arg(long, default_value = "ap-northeast-1")]
    region: String,
    /// The caller's key.
    #[arg(long, default_value = "AKIAIOSFODNN7EXAMPLE")]
    access_key_id: String,
    /// The caller's secret key; an example, like the key id.
    #[arg(long, default_value = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")]
    secret_access_key: String,
    /// File with the caller's IAM policy; by default only `ssm:StartSession` on the instance.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Which ways of opening a data channel are accepted.
    #[arg(long, value_enum, default_value_t = Opening::Unsigned)]
    opening: Opening,
    /// Omits the real agent's pauses.
    #[arg(long)]
    unpaced: bool,
    /// Seconds without input after which a session ends.
    #[arg(long, default_value_t = 1_200)]
    idle_timeout: u64,
    /// Seconds after which each WebSocket of a client is closed.
    #[arg(long, default_value_t = 3_600)]
    channel_lifetime: u64,
    /// Which of them are closed then. What the service does is not known.
    #[arg(long, value_enum, default_value_t = Closed::All)]
    closed_channels: Closed,
    /// Seconds after which the agent's own WebSocket is closed; it opens another one.
    #[arg(long, default_value_t = 3_600)]
    agent_channel_lifetime: u64,
    /// Limits of the gateway for what clients send. Each pauses the client first, and takes its channel if more
    /// than 256 KiB follow.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = FLOW_CONTROL)]
    flow_control: Vec<Limit>,
    /// MB/s of the limit `rate`.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// How a client loses its channel that goes on after a pause.
    #[arg(long, value_enum, default_value_t = Close::Session)]
    flow_close: Close,
    /// Loses at every start what a client sends right after the handshake, as in the tests. The real agent
    /// loses it in 2 of 75 starts, and so does this one by default.
    #[arg(long)]
    lose_early_data: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Adds a bastion and a PostgreSQL database with a table `orders`, in this process.
    #[arg(long, conflicts_with_all = ["ssh_port", "ssh_user", "ssh_private_key", "target_host", "target_port"])]
    embedded: bool,
    /// Writes the config to this file too, readable only by its owner.
    #[arg(long, alias = "document")]
    config: Option<PathBuf>,
    /// For the config: where sshd listens on this machine.
    #[arg(long, default_value_t = 22)]
    ssh_port: u16,
    /// For the config: the user who logs in there.
    #[arg(long, default_value = "ec2-user")]
    ssh_user: String,
    /// For the config: file of the private key.
    #[arg(long)]
    ssh_private_key: Option<PathBuf>,
    /// For the config: the target, as sshd sees it.
    #[arg(long, default_value = "127.0.0.1")]
    target_host: String,
    /// For the config: the target's port.
    #[arg(long, default_value_t = 5_432)]
    target_port: u16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Opening {
    /// Unsigned, or signed with the permission.
    Unsigned,
    /// Signed with the permission only.
    Signed,
    /// Unsigned, or signed without any permission.
    Any,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Limit {
    /// No limit.
    None,
    /// 256 KiB that the agent has not acknowledged.
    Window,
    /// `--rate` MB/s, retransmissions included.
    Rate,
    /// 256 KiB within two seconds in messages of more than 1,024 bytes.
    Large,
    /// A pause while the agent's own WebSocket is broken.
    AgentAway,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Closed {
    /// All.
    All,
    /// Those whose opening was signed.
    Signed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Close {
    /// The session ends by `channel_closed`.
    Session,
    /// Only the WebSocket is closed; the session may be resumed.
    Websocket,
}

/// The limits by default.
const FLOW_CONTROL: [Limit; 3] = [Limit::Window, Limit::Rate, Limit::Large];

/// Share of the starts in which the real agent loses early data.
const REAL_SHARE: f64 = 2.0 / 75.0;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let policy = match &options.policy {
        Some(file) => Policy::from_json(&fs::read_to_string(file)?)?,
        None => Policy::least_privilege(&options.instance),
    };
    let emulator = Emulator::builder()
        .port(options.port)
        .instance(&options.instance)
        .region(&options.region)
        .access_key(&options.access_key_id, &options.secret_access_key)
        .policy(policy)
        .opening(match options.opening {
            Opening::Unsigned => OpeningMode::UnsignedAccepted,
            Opening::Signed => OpeningMode::SignedOnly,
            Opening::Any => OpeningMode::PermissionNotAsked,
        })
        .pacing(if options.unpaced { Pacing::Unpaced } else { Pacing::Real })
        .idle_timeout(Duration::from_secs(options.idle_timeout))
        .channel_lifetime(Duration::from_secs(options.channel_lifetime))
        .agent(agent(&options))
        .flow_control(flow_control(&options))
        .faults(Plan::seeded(options.seed));
    let emulator = if matches!(options.closed_channels, Closed::Signed) {
        emulator.unsigned_channels_live_on()
    } else {
        emulator
    };
    let emulator = emulator.build().await?;
    println!("SSM and STS    {}", emulator.api_url());
    println!("data channels  {}", emulator.stream_url());
    let embedded = if options.embedded { Some(Embedded::start().await?) } else { None };
    let config = config(&options, &emulator, embedded.as_ref())?;
    println!("\nA config for the sidecar's stdin:\n\n{config}");
    if let Some(file) = &options.config {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)?;
        file.write_all(config.as_bytes())?;
    }

    let journal = emulator.journal();
    let follow = async {
        let mut known = 0;
        loop {
            for entry in journal.after(known).await {
                eprintln!("{:>9.3} s  {:?}", entry.at.as_secs_f64(), entry.record);
                known += 1;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let left = journal.open_sessions();
    if !left.is_empty() {
        eprintln!("sessions left open: {}", left.join(", "));
    }
    Ok(())
}

fn agent(options: &Options) -> AgentSettings {
    AgentSettings::default()
        .channel_lifetime(Duration::from_secs(options.agent_channel_lifetime))
        .complete_delay_share(if options.lose_early_data { 1.0 } else { REAL_SHARE })
}

fn flow_control(options: &Options) -> FlowControl {
    let model = FlowControl::none().closing(match options.flow_close {
        Close::Session => FlowClose::ChannelClosed,
        Close::Websocket => FlowClose::WebSocket,
    });
    options.flow_control.iter().fold(model, |model, limit| match limit {
        Limit::None => model,
        Limit::Window => model.window(),
        Limit::Rate => model.rate(options.rate),
        Limit::Large => model.large_messages(),
        Limit::AgentAway => model.agent_away(),
    })
}

/// Servers of the customer's network.
struct Embedded {
    database: Database,
    bastion: Bastion,
}

impl Embedded {
    async fn start() -> std::io::Result<Self> {
        let database = Database::start().await?;
        let bastion = Bastion::start("127.0.0.1", database.port()).await?;
        Ok(Self { database, bastion })
    }
}

fn config(
    options: &Options,
    emulator: &Emulator,
    embedded: Option<&Embedded>,
) -> Result<String, Box<dyn Error>> {
    let key = match &options.ssh_private_key {
        Some(file) => fs::read_to_string(file)?,
        None => "the text of the key file (--ssh-private-key FILE fills it in)".to_owned(),
    };
    let (bastion, target) = match embedded {
        Some(Embedded { database, bastion }) => (
            json!({
                "instance_id": options.instance,
                "ssh_port": bastion.port(),
                "ssh_user": Bastion::USER,
                "ssh_private_key": bastion.client_key(),
                "ssh_host_key": bastion.fingerprint(),
            }),
            json!({ "engine": "postgresql", "host": "127.0.0.1", "port": database.port() }),
        ),
        None => (
            json!({
                "instance_id": options.instance,
                "ssh_port": options.ssh_port,
                "ssh_user": options.ssh_user,
                "ssh_private_key": key,
            }),
            json!({ "host": options.target_host, "port": options.target_port }),
        ),
    };
    let config = json!({
        "name": "by hand",
        "aws": {
            "access_key_id": options.access_key_id,
            "secret_access_key": options.secret_access_key,
            "region": options.region,
            "endpoint_url": emulator.api_url(),
        },
        "bastion": bastion,
        "target": target,
    });
    Ok(format!("{config:#}"))
}
