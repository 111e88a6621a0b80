from __future__ import annotations

import os
import threading

from launcher.output import Output


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_everything_is_written_in_order():
    reader, writer = os.pipe()
    output = Output(writer)
    for number in range(1000):
        assert output.write(f"line {number}\n") == len(f"line {number}\n")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"".join(b"line %d\n" % n for n in range(1000))


def test_a_reader_that_stalls_costs_lines_and_is_told_how_many():
    reader, writer = os.pipe()
    output = Output(writer, limit_bytes=200_000)
    line = b"x" * 999 + b"\n"
    for _ in range(1000):  # more than the pipe and the queue hold; returns all the same
        output.write_bytes(line)
    file = os.fdopen(reader, "rb")
    seen = file.read(200_000)
    output.write_bytes(b"after\n")  # what was read has left the queue, so there is room
    rest: list[bytes] = []
    reading = threading.Thread(target=lambda: rest.append(file.read()))
    reading.start()
    output.close()
    os.close(writer)
    reading.join()
    file.close()
    kept = (seen + rest[0]).count(line)
    assert kept < 1000
    assert rest[0].endswith(f"[{1000 - kept} pieces of output dropped: nobody read them]\nafter\n".encode())


def test_the_notice_of_lost_lines_has_the_form_that_was_asked_for():
    reader, writer = os.pipe()
    output = Output(writer, limit_bytes=10, notice=lambda dropped: b"<%d lost>" % dropped)
    output.write_bytes(b"x" * 11)
    output.write_bytes(b"y")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"<1 lost>y"


def test_a_reader_that_went_away_does_not_matter():
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(writer)
    for _ in range(100):
        output.write("nobody hears this\n")
    output.close()
    os.close(writer)


def test_close_does_not_wait_for_a_reader_that_never_reads():
    reader, writer = os.pipe()
    output = Output(writer)
    output.write_bytes(b"x" * 1_000_000)
    output.close(timeout_s=0.01)
    os.close(reader)  # the thread gets a broken pipe and ends
    output.close()
    os.close(writer)


def test_text_that_cannot_be_encoded_is_written_somehow():
    reader, writer = os.pipe()
    output = Output(writer)
    output.write("lone \ud800 surrogate\n")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"lone ? surrogate\n"
