//! Links `steady.c` into the simulation's programs. As an object, not a library: nothing but a weak symbol asks for it, and
//! no member of a library is linked for that.

fn main() {
    println!("cargo::rerun-if-changed=src/steady.c");
    for object in cc::Build::new().file("src/steady.c").compile_intermediates() {
        println!("cargo::rustc-link-arg-bins={}", object.display());
        println!("cargo::rustc-link-arg-tests={}", object.display());
    }
}
