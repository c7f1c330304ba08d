//! Parity with the reference folders of `tests/fixtures`, which PyTorch, Transformers, PEFT and the TAR authors' own loop
//! have computed: every check, on every backend.

/// Abliteration takes the direction that Transformers' hidden states give.
mod abliteration;
/// The losses of defences that need no attack are those of PyTorch.
mod losses;
/// Forward passes, losses, gradients and attacks are those of PyTorch, Transformers and PEFT.
mod model;
mod reference;
/// Losses on chosen hidden states are those of PyTorch.
mod representations;
#[path = "../support/mod.rs"]
mod support;
/// Three outer steps end where the authors' loop ends.
mod tar;
/// RMU and MUDMAN end where PyTorch ends.
mod unlearning;

/// All checks on one backend.
macro_rules! parity {
    ($module:ident, $backend:expr, $bounds:expr, [$($check:path as $name:ident),* $(,)?]) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    $check(&$backend, &$bounds);
                }
            )*
        }
    };
    ($module:ident, $backend:expr, $bounds:expr) => {
        parity!($module, $backend, $bounds, [
            crate::model::logits_and_hidden_states_are_those_of_transformers as forward,
            crate::model::cross_entropy_and_entropy_have_the_losses_and_gradients_of_pytorch as cross_entropy_and_entropy,
            crate::model::retain_and_random_mapping_have_the_losses_and_gradients_of_pytorch as retain_and_random_mapping,
            crate::representations::losses_on_chosen_states_have_the_losses_and_gradients_of_pytorch as chosen_states,
            crate::model::preference_loss_has_the_loss_and_gradients_of_pytorch as preference,
            crate::losses::losses_of_defences_have_the_values_and_gradients_of_pytorch as losses_of_defences,
            crate::model::full_parameter_attacks_follow_every_optimizer_of_pytorch as full_parameter_attacks,
            crate::model::lora_attacks_follow_peft as lora_attacks,
            crate::model::the_gradient_of_full_weights_under_an_adapter_is_that_of_the_merged_weights as merged_gradient,
            crate::tar::three_outer_steps_end_where_the_authors_loop_ends as nested_loop,
            crate::abliteration::the_direction_is_the_difference_of_the_means_of_transformers as abliteration_direction,
            crate::abliteration::an_abliterated_model_writes_nothing_along_the_direction as abliteration_weights,
            crate::abliteration::without_a_depth_the_attacker_takes_the_one_that_serves_him_best as abliteration_depth,
            crate::abliteration::an_edited_matrix_replaces_its_own_and_no_other_weight as edited_matrix,
            crate::abliteration::noise_has_the_asked_size_in_every_tensor_and_follows_its_seed as noise,
            crate::tar::attacks_are_undone_bit_for_bit as restored,
            crate::unlearning::rmu_ends_where_pytorch_ends as rmu,
            crate::unlearning::mudman_ends_where_pytorch_ends as mudman,
        ]);
    };
}

parity!(cpu, temper::backend::cpu::Cpu, crate::reference::F32);
parity!(simulated_f32, temper::backend::cuda::Cuda::simulated(temper::ops::DType::F32).unwrap(), crate::reference::F32);
parity!(
    simulated_bf16,
    temper::backend::cuda::Cuda::simulated(temper::ops::DType::Bf16).unwrap(),
    crate::reference::BF16
);
