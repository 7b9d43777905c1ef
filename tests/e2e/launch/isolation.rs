//! Each sidecar sees only itself, inherits nothing, and has no rights.

use std::{
    fs::{self, File},
    process::Command,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    unistd::geteuid,
};
use runner_protocol::launch::{
    Isolation, LaunchError, Launcher, Limits, Network, Protection, Sidecar, Stderr,
};

use tests::fixtures::{binary, eventually};

use super::{alone, idle, launcher};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_differ_from_the_runners_and_from_each_others() {
    let _alone = alone().await;
    let Some(launcher) = isolating().await else { return };
    let (first, second) = (idle(&launcher).await, idle(&launcher).await);
    let isolated = idle(&launcher.network(Network::Fresh)).await;
    for kind in ["user", "mnt", "pid", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let [first, second] = [&first, &second].map(|sidecar| of(&pid(sidecar)));
        assert!(of("self") != first && of("self") != second && first != second, "{kind}");
    }
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network("self"), network(&pid(&first)));
    assert_ne!(network("self"), network(&pid(&isolated)));
    // It is process 1 of its PID namespace, and its /proc shows only its own processes.
    assert_eq!(field(&first, "NSpid:").split_whitespace().last(), Some("1"));
    let processes = fs::read_dir(format!("/proc/{}/root/proc", pid(&first))).unwrap();
    let processes = processes.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let seen = processes.filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(seen, first.metrics().unwrap().processes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_capability_no_new_privilege_and_small_limits() {
    let _alone = alone().await;
    let limits = Limits { open_files: 300, address_space: Some(8 << 30) };
    let sidecar = idle(&launcher().await.limits(limits)).await;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let is_root_or_effective = geteuid().is_root() || set != "CapBnd:" || is_isolated(&sidecar);
        if is_root_or_effective {
            assert_eq!(u64::from_str_radix(&field(&sidecar, set), 16), Ok(0), "{set}");
        }
    }
    assert_eq!(field(&sidecar, "NoNewPrivs:"), "1");
    // While a thread or a process is created, the C library blocks every signal for a moment; an
    // inherited mask would persist.
    let unblocked = async || field(&sidecar, "SigBlk:") == "0000000000000000";
    assert!(eventually(Duration::from_secs(30), unblocked).await, "a signal is blocked");
    let all = fs::read_to_string(format!("/proc/{}/limits", pid(&sidecar))).unwrap();
    let limit = |name: &str| {
        let line = all.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max file size"), ["0", "0"]);
    assert_eq!(limit("Max open files"), ["300", "300"]);
    assert_eq!(limit("Max address space"), ["8589934592", "8589934592"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_and_descriptors_are_the_listed_ones() {
    let _alone = alone().await;
    if !geteuid().is_root() {
        println!("skipped: only root may look into a process that is not dumpable");
        return;
    }
    // A runner with a leak: a descriptor of its own file, without close-on-exec.
    let leaked = tempfile::NamedTempFile::new().unwrap();
    let path = fs::canonicalize(leaked.path()).unwrap();
    let file = File::open(&path).unwrap();
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    assert!(std::env::vars_os().count() > 3, "this process has an environment");

    let launcher = launcher().await.variable("SSL_CERT_FILE", "/x").inherit("NEVER_SET_ANYWHERE");
    let (first, second) = (idle(&launcher).await, idle(&launcher).await);
    for sidecar in [&first, &second] {
        let environment = fs::read(format!("/proc/{}/environ", pid(sidecar))).unwrap();
        assert_eq!(environment, b"SSL_CERT_FILE=/x\0");
    }
    // Only streams and what a runtime creates for itself, and no pipe of the other sidecar.
    let (of_first, of_second) = (descriptors(&first), descriptors(&second));
    assert!(of_first.iter().all(|link| *link != path.to_string_lossy()), "{of_first:?}");
    let shared =
        of_first.iter().filter(|link| link.starts_with("pipe:") && of_second.contains(link));
    assert_eq!(shared.count(), 0, "{of_first:?} {of_second:?}");
    let ours = descriptors_of("self").into_iter().filter(|link| link.starts_with("pipe:"));
    let theirs = ours.filter(|link| of_first.contains(link)).count();
    assert_eq!(theirs, 2, "the lease and stdout, one end each: {of_first:?}");
    drop(file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_directories_are_empty_and_the_user_is_the_given_one() {
    let _alone = alone().await;
    let Some(_) = isolating().await else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("secret"), "x").unwrap();
    let shell =
        Launcher::new("/bin/sh").argument("-c").argument("echo ready 1; read line; sleep 60");
    let shell = shell.variable("PATH", "/bin:/usr/bin").user(65_534, 65_534).hide(directory.path());
    let mut sidecar = shell
        .hide("/nonexistent")
        .isolation(Isolation::Required)
        .launch("{", Stderr::Discard)
        .await
        .unwrap();
    sidecar.ready().await.unwrap();
    let inside = format!("/proc/{}/root{}", pid(&sidecar), directory.path().display());
    assert_eq!(fs::read_dir(inside).unwrap().count(), 0);
    assert_eq!(field(&sidecar, "Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&sidecar, "Gid:"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&sidecar, "Groups:").trim(), "");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn host_without_namespaces_is_reported_and_refused_where_they_are_required() {
    for (closed, refused) in [
        ("user", "user namespace"),
        ("user pid", "user namespace; mount, PID, IPC and UTS namespaces"),
    ] {
        let script = format!(
            "for kind in {closed}; do echo 0 >/proc/sys/user/max_${{kind}}_namespaces || exit 9; done; \
             exec \"$0\" --exact launch::isolation::in_a_host_without_namespaces --ignored --nocapture"
        );
        let output = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--mount-proc",
                "sh",
                "-c",
                &script,
            ])
            .arg(std::env::current_exe().unwrap())
            .env("REFUSED", refused)
            .env("SSM_SIDECAR_BIN", binary().unwrap())
            .output();
        let Ok(output) = output else {
            println!("skipped: there is no `unshare` here");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        if !said.contains("running 1 test") {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        assert!(output.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }
}

/// The inner half of the test above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a helper of another test, which takes namespaces away"]
async fn in_a_host_without_namespaces() {
    let expected = std::env::var("REFUSED").unwrap();
    let launcher = launcher().await;
    let sidecar = idle(&launcher).await;
    let refused: Vec<_> = sidecar
        .missing_protections()
        .iter()
        .map(|refused| refused.protection.to_string())
        .collect();
    assert_eq!(refused.join("; "), expected);
    let alive = sidecar.metrics().unwrap();
    assert!(alive.processes >= 1);
    assert!(sidecar.stop().await.unwrap().code.is_some());

    let required = launcher.isolation(Isolation::Required);
    let error = required.launch("{", Stderr::Discard).await.unwrap_err();
    let LaunchError::MissingProtections(refused) = error else { panic!("{error:?}") };
    assert_eq!(refused.first().unwrap().protection, Protection::UserNamespace);
}

/// A launcher that requires every protection; `None` if not all are available here, or if their effect
/// could not be checked.
async fn isolating() -> Option<Launcher> {
    let launcher = launcher().await.isolation(Isolation::Required);
    match launcher.launch("{", Stderr::Discard).await {
        Ok(_) if geteuid().is_root() => Some(launcher),
        Ok(_) => {
            println!("skipped: only root may look into a process that is not dumpable");
            None
        }
        Err(LaunchError::MissingProtections(refused)) => {
            println!("skipped: this host refuses {refused:?}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn is_isolated(sidecar: &Sidecar) -> bool {
    sidecar.missing_protections().is_empty()
}

fn pid(sidecar: &Sidecar) -> String {
    sidecar.pid().unwrap().to_string()
}

/// The value of a line of `/proc/PID/status`.
fn field(sidecar: &Sidecar, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", pid(sidecar))).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

fn descriptors(sidecar: &Sidecar) -> Vec<String> {
    descriptors_of(&pid(sidecar))
}

fn descriptors_of(pid: &str) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // A descriptor closed meanwhile has no link.
    let links = all.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}
