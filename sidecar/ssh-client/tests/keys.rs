//! Private keys as `ssh-keygen` and `openssl` write them, and as copy and paste damages them.
#![expect(clippy::disallowed_methods, reason = "these run on real time")]
#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

mod common;

use std::{path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{Session, Sshd, keygen};
use ssh_client::{Event, KeyError, fingerprint, key_type, load_private_key};

#[test]
fn every_type_in_every_format_logs_in() {
    let sshd = Sshd::start("");
    for (kind, bits) in TYPES {
        for (format, arguments) in
            [("OpenSSH", &[][..]), ("PEM", &["-m", "PEM"]), ("PKCS#8", &["-m", "PKCS8"])]
        {
            for passphrase in [None, Some(PASSPHRASE)] {
                let case = format!("{kind} {bits} {format} {passphrase:?}");
                let path = sshd.dir.path().join(case.replace([' ', '#', '"', '(', ')'], "_"));
                let new = passphrase.unwrap_or_default();
                let usual = ["-q", "-t", kind, "-b", bits, "-N", new];
                keygen(&[&usual[..], arguments, &["-f"]].concat(), &path);
                let text = std::fs::read_to_string(&path).unwrap();
                let key = match load_private_key(&text, passphrase) {
                    // ssh-keygen encrypts SEC1 with AES-128 by a scheme that is not decoded.
                    Err(KeyError::Unreadable { why })
                        if *kind == "ecdsa" && format == "PEM" && passphrase.is_some() =>
                    {
                        assert!(why.contains("convert"), "{case}: {why}");
                        continue;
                    }
                    loaded => loaded.unwrap_or_else(|error| panic!("{case}: {error}")),
                };
                sshd.authorize(&path.with_extension("pub"));
                let mut config = sshd.config();
                config.key = key.into();
                let session = Session::login(&sshd, config);
                assert!(session.saw(|event| matches!(event, Event::Authenticated(_))), "{case}");

                if passphrase.is_some() {
                    let required = Some(KeyError::PassphraseRequired);
                    assert_eq!(load_private_key(&text, None).err(), required, "{case}");
                    assert_eq!(load_private_key(&text, Some("")).err(), required, "{case}");
                    let wrong = load_private_key(&text, Some("wrong")).err();
                    assert_eq!(wrong, Some(KeyError::PassphraseWrong), "{case}");
                } else {
                    assert!(load_private_key(&text, Some("needless")).is_ok(), "{case}");
                }
            }
        }
    }
}

#[test]
fn fingerprint_and_type_are_those_of_ssh_keygen() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, bits) in TYPES {
        let path = dir.path().join(format!("{kind}_{bits}"));
        keygen(&["-q", "-t", kind, "-b", bits, "-N", "", "-f"], &path);
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        let listed = Command::new("ssh-keygen").arg("-lf").arg(&path).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let key = common::load(&path, None);
        assert_eq!(Some(fingerprint(&key).as_str()), listed.split(' ').nth(1), "{kind} {bits}");
        assert_eq!(Some(key_type(&key).as_str()), public.split(' ').next(), "{kind} {bits}");
    }
}

#[test]
fn key_whose_passphrase_takes_hours_to_try_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        assert_eq!(load_private_key(text, Some(PASSPHRASE)).err(), Some(KeyError::Costly));
    };

    // OpenSSH's format: the last four bytes of the options are the number of rounds, 24 by default.
    let path = dir.path().join("openssh");
    keygen(&["-q", "-t", "ed25519", "-a", "24", "-N", PASSPHRASE, "-f"], &path);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(load_private_key(&text, Some(PASSPHRASE)).is_ok());
    let [begin, body @ .., end] = &text.lines().collect::<Vec<_>>()[..] else { unreachable!() };
    let mut content = STANDARD.decode(body.concat()).unwrap();
    let rounds = content.windows(8).position(|w| w == [0, 0, 0, 24, 0, 0, 0, 1]).unwrap();
    content[rounds..][..4].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
    refused(&format!("{begin}\n{}\n{end}\n", STANDARD.encode(&content)));

    // PKCS#8 by openssl. Encrypting takes as long as decrypting, so the number of iterations is changed here.
    let path = dir.path().join("pkcs8");
    openssl(&path, "genpkey -algorithm ED25519 -aes-256-cbc -pass pass:correct");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(load_private_key(&text, Some("correct")).is_ok());
    let [begin, body @ .., end] = &text.lines().collect::<Vec<_>>()[..] else { unreachable!() };
    let mut content = STANDARD.decode(body.concat()).unwrap();
    let iterations = content.windows(4).position(|w| w == [2, 2, 8, 0]).unwrap();
    content[iterations + 2] = 0x7f;
    assert!(
        matches!(
            load_private_key(
                &format!("{begin}\n{}\n{end}\n", STANDARD.encode(&content)),
                Some("correct")
            ),
            Err(KeyError::PassphraseWrong)
        ),
        "32,512 iterations are few enough to be tried"
    );
    let longer =
        [&content[..iterations], &[2, 4, 0x7f, 0, 0, 0], &content[iterations + 4..]].concat();
    refused(&format!("{begin}\n{}\n{end}\n", STANDARD.encode(&longer)));

    // PuTTY's format: memory.
    let putty = "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: aes256-cbc\nComment: x\n\
                 Public-Lines: 1\nAAAA\nKey-Derivation: Argon2id\nArgon2-Memory: 4194304\n\
                 Argon2-Passes: 1\nArgon2-Parallelism: 1\nArgon2-Salt: 00\nPrivate-Lines: 1\nAAAA\n\
                 Private-MAC: 00\n";
    refused(putty);
}

#[test]
fn keys_of_openssl_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, arguments: &str| {
        let path = dir.path().join(name);
        openssl(&path, arguments);
        std::fs::read_to_string(path).unwrap()
    };
    let cases = [
        ("pkcs1", "genrsa -traditional 2048", None),
        ("pkcs8", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", None),
        ("ed25519", "genpkey -algorithm ED25519", None),
        ("sec1 behind its parameters", "ecparam -name prime256v1 -genkey", None),
        ("sec1 alone", "ecparam -name secp384r1 -genkey -noout", None),
        ("aes-256", "genpkey -algorithm ED25519 -aes-256-cbc -pass pass:x", Some("x")),
        ("aes-128", "genpkey -algorithm ED25519 -aes-128-cbc -pass pass:x", Some("x")),
        ("dek-info", "genrsa -traditional -aes128 -passout pass:x 2048", Some("x")),
    ];
    for (name, arguments, passphrase) in cases {
        let loaded = load_private_key(&made(name, arguments), passphrase);
        assert!(loaded.is_ok(), "case {name}: {:?}", loaded.err());
    }
    let refused = [
        ("des3", "genpkey -algorithm ED25519 -des3 -pass pass:x", "convert"),
        ("dek-info des3", "genrsa -traditional -des3 -passout pass:x 2048", "convert"),
        ("public", "rsa -pubout -in pkcs1", "public"),
        ("ed448", "genpkey -algorithm ED448", "type"),
    ];
    for (name, arguments, expected) in refused {
        let arguments = arguments.replace("pkcs1", dir.path().join("pkcs1").to_str().unwrap());
        match load_private_key(&made(name, &arguments), Some("x")) {
            Err(KeyError::Unreadable { why }) => assert!(why.contains(expected), "{name}: {why}"),
            other => panic!("case {name}: {:?}", other.err()),
        }
    }
}

#[test]
fn damage_of_copy_and_paste_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let openssh = dir.path().join("openssh");
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f"], &openssh);
    let dek = dir.path().join("dek");
    openssl(&dek, "genrsa -traditional -aes128 -passout pass:x 2048");
    for (name, path) in [("openssh", openssh), ("dek-info", dek)] {
        let text = std::fs::read_to_string(path).unwrap();
        let damages = [
            ("byte order mark", format!("\u{feff}{text}")),
            ("CRLF", text.replace('\n', "\r\n")),
            ("CR", text.replace('\n', "\r")),
            ("indented", format!("    {}", text.replace('\n', "\n    "))),
            ("trailing blanks", text.replace('\n', " \t\n")),
            ("blank lines", text.replace('\n', "\n\n")),
            ("backslashes", text.replace('\n', "\\n")),
            ("backslashes with CR", text.replace('\n', "\\r\\n")),
            ("one line", text.replace('\n', " ")),
            ("text around", format!("Here it is:\n{text}\nBye\n")),
            ("no last newline", text.trim_end().to_owned()),
            ("backslashes of backslashes", text.replace('\n', "\\\\n")),
            ("slashes escaped", text.replace('/', "\\/")),
            ("continued lines", text.replace('\n', "\\\n")),
            (
                "zero width",
                text.replace('\n', "\u{200b}\n").replacen("AA", "A\u{feff}\u{2060}A", 1),
            ),
            ("no-break blanks", text.replace('\n', "\u{a0}\n\u{a0}")),
            ("line separators", text.replace('\n', "\u{2028}")),
            ("quoted", format!("\"{}\"", text.replace('\n', "\\n"))),
            ("quoted lines", format!("\"{}\",", text.trim().replace('\n', "\",\n  \""))),
            ("quoted letter", format!("> {}", text.replace('\n', "\n> "))),
            ("base64 of it", STANDARD.encode(&text)),
            ("base64 of it in lines", {
                let base64 = STANDARD.encode(&text).into_bytes();
                base64
                    .chunks(60)
                    .map(|line| std::str::from_utf8(line).unwrap())
                    .collect::<Vec<_>>()
                    .join("\n")
            }),
            ("base64 of it quoted", format!("'{}'", STANDARD.encode(text.replace('\n', "\r\n")))),
        ];
        let expected = load_private_key(&text, Some("x")).unwrap();
        for (damage, damaged) in damages {
            let loaded = load_private_key(&damaged, Some("x"));
            let loaded = loaded.unwrap_or_else(|error| panic!("{name}, {damage}: {error}"));
            assert_eq!(loaded.public_key().key_data(), expected.public_key().key_data());
        }
    }
}

#[test]
fn text_that_is_no_private_key_is_named_and_never_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f"], &path);
    let text = std::fs::read_to_string(&path).unwrap();
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    let cut = text.replace("-----END OPENSSH PRIVATE KEY-----", "");
    let cases = [
        ("empty", " \n".to_owned(), "empty"),
        ("path", "/home/user/.ssh/id_rsa".to_owned(), "name of a file"),
        ("anything", "hunter2".to_owned(), "begin"),
        ("public line", public, "public"),
        ("path with home", "~/.ssh/id_ed25519".to_owned(), "name of a file"),
        ("certificate line", "ssh-ed25519-cert-v01@openssh.com AAAA x".to_owned(), "certificate"),
        ("ssh.com", "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n".to_owned(), "ssh.com"),
        ("cut", cut, "cut off"),
        ("bytes lost", text.replace("AAAA", "AA"), "damaged"),
        (
            "not base64",
            text.replacen("AAAA", "A!AA", 1),
            "`!` (U+0021) does not belong there, in line 2, column 2",
        ),
        (
            "dash of a word processor",
            text.replacen("b3Bl", "b3\u{2013}l", 1),
            "U+2013) does not belong there, in line 2, column 3",
        ),
        (
            "escaped",
            text.replacen("b3Bl", "b3*l", 1).replace('\n', "\\n"),
            "(U+002A) does not belong there, in line 2, column 3",
        ),
        (
            "DSA",
            "-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n".to_owned(),
            "DSA",
        ),
    ];
    for (name, damaged, expected) in cases {
        match load_private_key(&damaged, None) {
            Err(KeyError::Unreadable { why }) => assert!(why.contains(expected), "{name}: {why}"),
            other => panic!("case {name}: {:?}", other.err()),
        }
    }
}

/// Keys as people have sent them, created for these tests.
#[test]
fn keys_as_programs_export_and_carry_them_open() {
    let expected = "SHA256:ZrInvSmR2knPSN0sVG0eWdO9DmwRz/ry9MnfmrxaeDw";
    for (name, text) in [
        ("PKCS#8 version 2, explicit", include_str!("keys/ed25519-pkcs8-v2-explicit.pem")),
        ("escaped twice", include_str!("keys/ed25519-doubled-backslash-n.txt")),
        ("zero width", include_str!("keys/ed25519-zero-width.txt")),
        ("base64 of PEM", include_str!("keys/ed25519-base64-of-pem.txt")),
    ] {
        let loaded = load_private_key(text, None);
        let loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(fingerprint(&loaded), expected, "{name}");
    }
}

#[test]
fn second_version_of_pkcs8_opens_and_its_public_half_must_fit() {
    let explicit = include_str!("keys/ed25519-pkcs8-v2-explicit.pem");
    let [begin, body @ .., end] = &explicit.lines().collect::<Vec<_>>()[..] else { unreachable!() };
    let explicit = STANDARD.decode(body.concat()).unwrap();
    let pem = |der: &[u8]| format!("{begin}\n{}\n{end}\n", STANDARD.encode(der));
    let head = explicit.len() - 37;
    // As RFC 5958 has it, and with attributes before it.
    let with = |behind: &[&[u8]]| {
        let content = [&explicit[2..head], &behind.concat()].concat();
        [&[0x30, u8::try_from(content.len()).unwrap()], &*content].concat()
    };
    let bits = &explicit[head + 4..];
    let implicit = with(&[&[0x81, 0x21], bits]);
    let attributes = with(&[&[0xa0, 2, 0x31, 0], &[0x81, 0x21], bits]);
    let expected = fingerprint(&load_private_key(&pem(&explicit), None).unwrap());
    for (name, der) in [("implicit", &implicit), ("attributes", &attributes)] {
        let loaded = load_private_key(&pem(der), None);
        assert_eq!(loaded.map(|key| fingerprint(&key)).as_deref(), Ok(expected.as_str()), "{name}");
    }
    let mut other = explicit.clone();
    *other.last_mut().unwrap() ^= 1;
    let error = load_private_key(&pem(&other), None).unwrap_err();
    assert!(error.to_string().contains("does not belong to its private half"), "{error}");
    for cut in 1..explicit.len() {
        assert!(load_private_key(&pem(&explicit[..cut]), None).is_err(), "{cut} bytes");
    }
}

#[test]
fn putty_key_that_cannot_be_read_is_named_as_such() {
    for text in [
        "PuTTY-User-Key-File-2: ssh-rsa\n",
        "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\nPublic-Lines: 1\nAAAA\n",
    ] {
        let error = load_private_key(text, None).unwrap_err();
        assert!(matches!(error, KeyError::Putty { .. }), "{error}");
    }
}

fn openssl(path: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(path, output.stdout).unwrap();
}

/// Type and size, as `ssh-keygen` takes them.
const TYPES: &[(&str, &str)] = &[
    ("ed25519", "256"),
    ("ecdsa", "256"),
    ("ecdsa", "384"),
    ("ecdsa", "521"),
    ("rsa", "2048"),
    ("rsa", "3072"),
];
const PASSPHRASE: &str = "correct horse";
