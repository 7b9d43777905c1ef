//! A real sshd, targets behind it, and a driver of the state machine over TCP.
#![allow(
    clippy::allow_attributes,
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it, and `expect` fails where all is used"
)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::let_underscore_must_use,
    reason = "what fails here fails its test; what ends with the other side may fail"
)]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use ssh_client::{ChannelId, Client, Config, Error, Event, PrivateKey};

/// A running sshd, killed on drop.
pub struct Sshd {
    child: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl Sshd {
    /// Starts sshd with `options` before the usual ones. The key `user` in its directory may log in.
    pub fn start(options: &str) -> Self {
        assert!(Path::new(SSHD).exists(), "{SSHD} is missing: install openssh-server");
        let dir = tempfile::tempdir().unwrap();
        for kind in ["ed25519", "ecdsa", "rsa"] {
            keygen(&["-q", "-t", kind, "-N", "", "-f"], &dir.path().join(format!("host_{kind}")));
        }
        let user = dir.path().join("user");
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f"], &user);
        std::fs::copy(dir.path().join("user.pub"), dir.path().join("authorized")).unwrap();
        if user_name() == "root" {
            // sshd started as root needs this directory for privilege separation.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = free_port();
        let path = dir.path().display();
        let config = format!(
            // sshd uses the first value of an option.
            "{options}\nListenAddress 127.0.0.1:{port}\nHostKey {path}/host_ed25519\n\
             HostKey {path}/host_ecdsa\nHostKey {path}/host_rsa\nPidFile none\n\
             AuthorizedKeysFile {path}/authorized\nStrictModes no\nUsePAM no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nAllowTcpForwarding yes\nLogLevel VERBOSE\n\
             MaxStartups 100\n"
        );
        let file = dir.path().join("config");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut sshd = Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), dir };
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(sshd.address).is_err() {
            assert!(sshd.child.try_wait().unwrap().is_none(), "sshd ended: {}", sshd.log());
            assert!(Instant::now() < deadline, "sshd does not listen: {}", sshd.log());
            thread::yield_now();
        }
        sshd
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A configuration that logs in.
    pub fn config(&self) -> Config {
        Config::new(user_name(), Arc::new(load(&self.dir.path().join("user"), None)))
    }

    /// The public key line of a host key.
    pub fn host_key(&self, kind: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("host_{kind}.pub"))).unwrap()
    }

    /// Allows another public key.
    pub fn authorize(&self, public: &Path) {
        let line = std::fs::read_to_string(public).unwrap();
        let path = self.dir.path().join("authorized");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state machine over a TCP connection.
pub struct Session {
    pub client: Client,
    stream: TcpStream,
    input: Receiver<Vec<u8>>,
    random: Random,
    /// All events so far.
    pub events: Vec<Event>,
    pub failure: Option<Error>,
    pub eof: bool,
    /// Largest piece of input that the client gets at once, in bytes.
    pub pieces: usize,
    /// Index of the byte of the coming input to change.
    corrupt: Option<usize>,
}

impl Session {
    /// Connects to `address`.
    pub fn connect(address: SocketAddr, config: Config) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut reading = stream.try_clone().unwrap();
        let (sender, input) = sync_channel(16);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = reading.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let random = Random::seeded();
        Self {
            client: Client::new(config, Instant::now()),
            stream,
            input,
            random,
            events: Vec::new(),
            failure: None,
            eof: false,
            pieces: 1000,
            corrupt: None,
        }
    }

    /// Connects and logs in.
    pub fn login(sshd: &Sshd, config: Config) -> Self {
        let mut session = Self::connect(sshd.address, config);
        session.until(|session| session.saw(|event| matches!(event, Event::Authenticated(_))));
        session
    }

    /// Drives the client until `done` returns `true`; panics if that takes longer than [`DEADLINE`] or the
    /// connection fails first.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(self.failure.is_none(), "{:?}; {:?}", self.failure, self.events);
            assert!(Instant::now() < deadline, "took too long; {:?}", self.events);
            self.turn(deadline);
        }
    }

    /// Drives the client until it fails and returns the error.
    pub fn until_failure(&mut self) -> Error {
        let deadline = Instant::now() + DEADLINE;
        while self.failure.is_none() {
            assert!(Instant::now() < deadline && !self.eof, "no failure; {:?}", self.events);
            self.turn(deadline);
        }
        self.failure.clone().unwrap()
    }

    /// One round: sends, waits for input or a deadline, and takes events.
    pub fn turn(&mut self, deadline: Instant) {
        self.flush();
        let now = Instant::now();
        let due = self.client.poll_timeout().unwrap_or(deadline).min(now + TICK);
        match self.input.recv_timeout(due.saturating_duration_since(now)) {
            Ok(data) => self.feed(&data),
            Err(RecvTimeoutError::Timeout) => {
                let result = self.client.handle_timeout(Instant::now());
                self.note(result);
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.eof = true;
                thread::park_timeout(TICK);
            }
        }
        self.flush();
        self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
    }

    /// Changes one bit of the byte after the next `bytes` of input.
    pub fn corrupt_after(&mut self, bytes: usize) {
        self.corrupt = Some(bytes);
    }

    fn feed(&mut self, data: &[u8]) {
        let mut data = data.to_vec();
        if let Some(at) = &mut self.corrupt {
            match data.get_mut(*at) {
                Some(byte) => {
                    *byte ^= 1;
                    self.corrupt = None;
                }
                None => *at -= data.len(),
            }
        }
        let mut data = data.as_slice();
        while !data.is_empty() {
            let size = self.random.below(self.pieces.min(data.len())) + 1;
            let (now, later) = data.split_at(size);
            let result = self.client.handle_input(Instant::now(), now);
            self.note(result);
            data = later;
        }
    }

    fn flush(&mut self) {
        let mut out = BytesMut::new();
        loop {
            out.clear();
            let result = self.client.poll_transmit(Instant::now(), &mut out, 64 * 1024);
            let _ = self.stream.write_all(&out);
            match result {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.note(Err(error)),
            }
        }
    }

    fn note(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    /// Whether an event has occurred so far.
    pub fn saw(&self, wanted: impl FnMut(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }

    /// Opens a channel to `target` and waits until it is open.
    pub fn open(&mut self, target: SocketAddr) -> ChannelId {
        let id = self.request(target);
        self.until(|session| session.saw(|event| *event == Event::ChannelOpened(id)));
        id
    }

    /// Requests a channel to `target`.
    pub fn request(&mut self, target: SocketAddr) -> ChannelId {
        let host = target.ip().to_string();
        self.client.open_direct_tcpip(&host, target.port(), ORIGINATOR).unwrap()
    }

    /// Takes all data that has arrived on a channel and consumes it.
    pub fn take(&mut self, id: ChannelId) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.client.read(id) {
            self.client.consumed(id, data.len());
            all.extend_from_slice(&data);
        }
        all
    }
}

/// A pseudo-random sequence. Its seed is printed, so that a failed run can be repeated with `SEED`.
pub struct Random(u64);

impl Random {
    pub fn seeded() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            u64::from(now.duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos())
        });
        println!("SEED={seed}");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }
}

/// Pseudo-random bytes, which do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&random.next().to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Listens on loopback and calls `serve` for every connection, each on its own thread.
pub fn target(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A target that echoes what it receives, until EOF.
pub fn echo() -> SocketAddr {
    target(|stream| {
        let _ = std::io::copy(&mut &stream, &mut &stream);
    })
}

/// A port of loopback where nothing listens and that no other test gets: below the kernel's range of ephemeral
/// ports, and counted up within the process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(211).wrapping_add(step) % 20_000;
        let port = u16::try_from(10_000 + offset).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub fn keygen(arguments: &[&str], path: &Path) {
    let output = Command::new("ssh-keygen").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub fn load(path: &Path, passphrase: Option<&str>) -> PrivateKey {
    ssh_client::load_private_key(&std::fs::read_to_string(path).unwrap(), passphrase).unwrap()
}

pub fn user_name() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub fn path_in(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

pub const SSHD: &str = "/usr/sbin/sshd";
pub const ORIGINATOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4242);
/// How long a test waits for anything.
pub const DEADLINE: Duration = Duration::from_mins(1);
/// Interval at which a condition is checked while nothing arrives.
const TICK: Duration = Duration::from_millis(20);
