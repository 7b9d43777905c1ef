//! Which file of a crate imports which: paths that begin with `crate`, `super` or `self`, in `use` items and elsewhere.
//! Code for tests does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Attribute, File, Item, ItemMod, ItemUse, Meta, UseTree,
    visit::{self, Visit},
};

/// The text of each file, by its path within `src`.
pub(crate) type Files = BTreeMap<String, String>;

/// The imports of a crate's files.
#[derive(Debug)]
pub(crate) struct Crate {
    /// By module path, such as `tunnel::lanes`: its file, and the module paths that it names.
    modules: BTreeMap<Vec<String>, Module>,
}

#[derive(Debug)]
struct Module {
    file: String,
    /// Module paths as written, from the crate's root; they may end in an item.
    imports: BTreeSet<Vec<String>>,
    /// The first parts of paths into other crates.
    libraries: BTreeSet<String>,
}

impl Crate {
    /// Reads the files below `src`, without those of tests and of programs.
    pub(crate) fn read(src: &Path) -> Self {
        let mut files = Files::new();
        collect(src, "", &mut files);
        Self::parse(&files)
    }

    pub(crate) fn parse(files: &Files) -> Self {
        let mut modules = BTreeMap::new();
        for (file, text) in files {
            let parsed: File =
                syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            let path = module_of(file);
            let mut collector = Collector { path: path.clone(), ..Collector::default() };
            if !parsed.attrs.iter().any(is_for_tests) {
                collector.visit_file(&parsed);
            }
            let Collector { imports, libraries, .. } = collector;
            modules.insert(path, Module { file: file.clone(), imports, libraries });
        }
        Self { modules }
    }

    /// The top-level modules.
    pub(crate) fn rooms(&self) -> BTreeSet<String> {
        self.modules.keys().filter_map(|path| path.first().cloned()).collect()
    }

    /// The other rooms that the files of `room` import.
    pub(crate) fn imports_of_room(&self, room: &str) -> BTreeSet<String> {
        let rooms = self.rooms();
        let of_room =
            self.modules.iter().filter(|(path, _)| path.first().is_some_and(|at| at == room));
        let imported = of_room.flat_map(|(_, module)| &module.imports);
        let first = imported.filter_map(|import| import.first());
        first.filter(|name| *name != room && rooms.contains(*name)).cloned().collect()
    }

    /// The rooms with a path into a crate whose name begins with `library`.
    pub(crate) fn rooms_that_use(&self, library: &str) -> Vec<String> {
        let uses = |module: &Module| module.libraries.iter().any(|name| name.starts_with(library));
        let importing = self.modules.iter().filter(|(_, module)| uses(module));
        importing.filter_map(|(path, _)| path.first().cloned()).collect()
    }

    /// The cycles of imports between files, each as its files in order of their names. A module and the modules inside
    /// it are one subject: imports between them do not count.
    pub(crate) fn cycles(&self) -> Vec<Vec<String>> {
        let mut reach: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let targets = module.imports.iter().filter_map(|import| self.resolve(import));
            let targets = targets.filter(|target| {
                !target.is_empty() && !target.starts_with(path) && !path.starts_with(target)
            });
            reach.insert(path, targets.collect());
        }
        // Transitive closure; crates have a hundred files at most.
        loop {
            let mut grown = false;
            for path in self.modules.keys() {
                let direct = reach.get(&**path).cloned().unwrap_or_default();
                let further: BTreeSet<_> =
                    direct.iter().filter_map(|next| reach.get(next)).flatten().copied().collect();
                let targets = reach.entry(path).or_default();
                let before = targets.len();
                targets.extend(further);
                grown |= targets.len() > before;
            }
            if !grown {
                break;
            }
        }
        let mut cycles: Vec<Vec<String>> = Vec::new();
        for (path, targets) in &reach {
            if !targets.contains(path) {
                continue;
            }
            let is_mutual =
                |other: &&[String]| reach.get(other).is_some_and(|back| back.contains(path));
            let members = targets.iter().filter(|other| is_mutual(other));
            let files = members.filter_map(|member| Some(self.modules.get(*member)?.file.clone()));
            let files: Vec<String> = files.collect::<BTreeSet<_>>().into_iter().collect();
            if !cycles.contains(&files) {
                cycles.push(files);
            }
        }
        cycles
    }

    /// The longest beginning of `import` that is a module.
    fn resolve(&self, import: &[String]) -> Option<&[String]> {
        (0..=import.len()).rev().find_map(|length| {
            let path = import.get(..length)?;
            self.modules.get_key_value(path).map(|(path, _)| &**path)
        })
    }
}

/// Adds the files of `directory`, which is at `prefix` within the crate.
fn collect(directory: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_of_tests = ["tests", "tests.rs", "testing", "testing.rs", "bin"].contains(&&*name);
        if is_of_tests {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{prefix}{name}/"), files);
        } else if entry.path().extension() == Some("rs".as_ref()) && name != "main.rs" {
            files.insert(format!("{prefix}{name}"), fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// The module of a file, as the crate's root names it; empty for the root.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Collects the paths of one file.
#[derive(Default)]
struct Collector {
    /// The module that is being visited.
    path: Vec<String>,
    imports: BTreeSet<Vec<String>>,
    libraries: BTreeSet<String>,
}

impl Collector {
    fn add(&mut self, segments: &[String]) {
        let mut absolute = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.path.clone(),
            Some(library) => {
                self.libraries.insert(library.to_owned());
                return;
            }
            None => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => (),
                "super" => drop(absolute.pop()),
                name => absolute.push(name.to_owned()),
            }
        }
        self.imports.insert(absolute);
    }

    fn add_tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(prefix, tree);
                }
            }
            UseTree::Name(name) => self.add_leaf(prefix, &name.ident.to_string()),
            UseTree::Rename(rename) => self.add_leaf(prefix, &rename.ident.to_string()),
            UseTree::Glob(_) => self.add(prefix),
        }
    }

    fn add_leaf(&mut self, prefix: &[String], name: &str) {
        let mut segments = prefix.to_vec();
        if name != "self" {
            segments.push(name.to_owned());
        }
        self.add(&segments);
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.path.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.path.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|each| each.ident.to_string()).collect();
        if segments.len() > 1 {
            self.add(&segments);
        }
        visit::visit_path(self, path);
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether this is `#[cfg(test)]`, or a combination with `test` or `fuzzing`.
fn is_for_tests(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    let condition = list.tokens.to_string();
    list.path.is_ident("cfg")
        && !condition.contains("not")
        && condition.split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
}
