import torch

from e2e_lib.repro.randomness import generator, python_random, seed_of, seeded


def test_the_same_key_gives_the_same_numbers_and_another_key_others():
    assert seed_of(0, "noise", 3) == seed_of(0, "noise", 3) != seed_of(0, "noise", 4)
    assert torch.equal(torch.rand(4, generator=generator(0, "a")), torch.rand(4, generator=generator(0, "a")))
    assert not torch.equal(torch.rand(4, generator=generator(0, "a")), torch.rand(4, generator=generator(1, "a")))
    assert python_random(0, "a").random() == python_random(0, "a").random() != python_random("0", "a").random()


def test_seeds_are_those_that_results_were_made_with():
    assert seed_of(0, "bridge", 1) == 563502884759465951 and seed_of("mini") == 8377984235628066045


def test_a_seeded_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(0, "weights"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected) and not torch.equal(inside, expected)
