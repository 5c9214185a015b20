from moebius_lab.bundle import operators_off_the_gpu, shipped_files


def test_shipped_files_and_operators(small):
    paths = small.stored()
    assert not any(operators_off_the_gpu(paths).values())
    files = shipped_files(paths)
    assert len(files) == 6 and (files.MB > 0).all() and files.sha256.str.fullmatch("[0-9a-f]{64}").all()
