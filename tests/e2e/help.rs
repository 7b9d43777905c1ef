//! Help, manual page and completions: everything there is to read about the commands.

use std::process::Command;

use tests::fixtures::binary;

/// Every command that the contract names, and the others.
const COMMANDS: [&str; 8] =
    ["run", "check", "exec", "schema", "policy", "probe", "completions", "man"];

#[test]
fn help_and_manual_name_every_command() {
    let (help, manual) = (print(&["--help"]), print(&["man"]));
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "`{command}` in {help}");
        assert!(manual.contains(command), "`{command}` in {manual}");
        let help = print(&[command, "--help"]);
        assert!(help.contains("Usage: ssm-sidecar"), "{help}");
    }
    assert!(manual.contains(".TH"), "no roff: {manual}");
}

#[test]
fn completions_are_scripts_that_their_shell_reads() {
    for (shell, check) in [
        ("bash", Some("bash")),
        ("zsh", None),
        ("fish", None),
        ("elvish", None),
        ("powershell", None),
    ] {
        let script = print(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "`{command}` in the script for {shell}");
        }
        if let Some(program) = check {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &script).unwrap();
            let status = Command::new(program).arg("-n").arg(file.path()).status().unwrap();
            assert!(status.success(), "{program} rejects its script");
        }
    }
}

#[test]
fn bash_completes_the_commands() {
    let script = print(&["completions", "bash"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &script).unwrap();
    let ask = "source \"$1\"; COMP_WORDS=(ssm-sidecar po); COMP_CWORD=1; \
               function=$(complete -p ssm-sidecar | sed 's/.* -F \\([^ ]*\\).*/\\1/'); \
               \"$function\" ssm-sidecar po ssm-sidecar; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", ask, "bash"]).arg(file.path()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "policy");
}

fn print(arguments: &[&str]) -> String {
    let output = Command::new(binary().unwrap()).args(arguments).env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {:?}", output.stderr);
    String::from_utf8(output.stdout).unwrap()
}
