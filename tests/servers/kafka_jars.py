"""The jars of Apache Kafka, in a cache outside this folder: fetched once, by Maven, from wherever its settings say.

`make kafka` runs this file. `apache_kafka.lock` has their checksums; what does not agree with them is not used.
Another release: change `VERSION`, run it with `--lock`, and look at what changed in the lock.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "4.4.0"
LOCK = Path(__file__).with_name("apache_kafka.lock")
"""As `sha256sum` writes it."""
LIMIT = 600.0
"""Seconds that Maven may take."""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>meshwire</groupId>
  <artifactId>apache-kafka</artifactId>
  <version>{VERSION}</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


class NoKafka(Exception):
    """Why there is no Apache Kafka here, and what to do about it."""


def folder() -> Path:
    """Where the jars of this lock are, or will be. The whole folder comes at once, checked."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("MESHWIRE_KAFKA_CACHE") or Path(caches) / "meshwire" / "kafka")
    return cache.absolute() / f"{VERSION}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def java() -> str:
    """The program. Raises `NoKafka`."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        raise NoKafka("Apache Kafka needs Java 17 or later, and there is none")
    return found


def missing() -> str | None:
    """Why Apache Kafka cannot be started, in one line; `None` when it can."""
    try:
        java()
    except NoKafka as reason:
        return str(reason)
    return None if folder().is_dir() else "no jars of Apache Kafka: make kafka fetches them"


def fetch() -> Path:
    """The folder of the jars, which are fetched when they are not there. Raises `NoKafka`."""
    java()
    target = folder()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as name:
        jars = Path(name) / "jars"
        _copy(jars)
        wanted, got = LOCK.read_text(), checksums(jars)
        if got != wanted:
            other = sorted({line.split()[1] for line in {*wanted.splitlines()} ^ {*got.splitlines()}})
            raise NoKafka(f"not what {LOCK.name} says, so nothing is kept: {', '.join(other)}")
        try:
            jars.rename(target)
        except OSError:
            if not target.is_dir():  # another process was first
                raise
    return target


def checksums(jars: Path) -> str:
    """In the format of the lock."""
    lines = (f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in sorted(jars.iterdir()))
    return "".join(lines)


def _copy(jars: Path) -> None:
    """Raises `NoKafka`."""
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafka("fetching Apache Kafka needs Maven (mvn); on Debian: apt-get install maven")
    pom = jars.with_name("pom.xml")
    pom.write_text(_POM)
    command = [maven, "-q", "-B", "-f", pom, _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=pom.parent)
    except subprocess.TimeoutExpired:
        raise NoKafka(f"Maven had not fetched Apache Kafka after {LIMIT:.0f} s") from None
    if done.returncode:
        raise NoKafka(f"Maven could not fetch Apache Kafka:\n{(done.stdout + done.stderr)[-2000:]}")


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["--lock"]:
            with tempfile.TemporaryDirectory() as name:
                _copy(Path(name) / "jars")
                LOCK.write_text(checksums(Path(name) / "jars"))
        print(fetch())
    except NoKafka as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
