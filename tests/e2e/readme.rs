//! `tests/README.md` names only tests that exist.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_table_of_endings_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    let mut sources = String::new();
    for entry in fs::read_dir(here.join("e2e")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let (_, table) = readme.split_once("## The ways out").unwrap();
    let names: Vec<_> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(['/', ' ']))
        .collect();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        assert!(
            sources.contains(&format!("fn {name}()")),
            "the README names a missing test `{name}`"
        );
    }
}
